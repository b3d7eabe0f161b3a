"""One readable page per task: load, make, train, evaluate once, save."""
