"""What the agent is (DNA) and what it knows (Matrix): both read from disk, checked, and loaded once."""
