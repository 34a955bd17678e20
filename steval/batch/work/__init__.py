"""What a job does: its stages, their tasks and chunks, what they need and whether a file is fit for them."""
