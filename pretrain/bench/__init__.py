"""What pre-training costs: parts, step and whole, beside the usual way; and as work grows."""
