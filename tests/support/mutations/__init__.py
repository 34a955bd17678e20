"""Random changes to valid inputs of every command, and what has to hold whatever they are (workflows/test_mutated_inputs.py)."""
