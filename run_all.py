"""The whole pipeline from one command line."""
