"""One small module for each framework; import the one that you use."""
