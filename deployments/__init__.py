"""What an operator runs around the flows."""
