"""Looking inside models: what they attend to, and what they make of a text."""
