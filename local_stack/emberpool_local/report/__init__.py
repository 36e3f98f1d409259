"""What a burst showed, as a page with plots and as a table for the terminal."""
