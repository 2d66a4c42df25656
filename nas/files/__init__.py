"""Files and folders that survive kills, and texts from outside that are checked before they are believed.

Begin with `atomic`, which writes whole files or none, then `folder`; `schemas` says how records must look.
"""
