"""What a user takes home: the found model in forms that run without the engine, each proven equal to it."""
