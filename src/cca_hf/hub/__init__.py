"""What a trained checkpoint shows of itself on the Hub."""
