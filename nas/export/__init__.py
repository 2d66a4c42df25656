"""What a user takes home: the found model in forms that run without the engine, each proven equal to it.

Begin with `bundle`, which writes, proves and describes them; `inference` and `server` answer images.
"""
