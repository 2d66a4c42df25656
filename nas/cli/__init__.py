"""The commands of `nas`: what all share is in `app`, options made from settings in `settings`.

Heavy libraries are imported inside the commands, so that help comes at once.
"""
