"""What a job leaves behind."""
