"""Routes of the app: the service itself, and what operators ask about it."""
