"""Commands about checkpoint files."""
