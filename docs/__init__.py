"""What makes the documentation: the tables of README.md, and the site."""
