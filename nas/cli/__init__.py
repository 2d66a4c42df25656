"""The commands of `nas`: what all share, options made from settings too, is in `app`.

Heavy libraries are imported inside the commands, so that help comes at once.
"""
