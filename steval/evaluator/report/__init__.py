"""What a scoring run found, as frames, figures and one HTML file."""
