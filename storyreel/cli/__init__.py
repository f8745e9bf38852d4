"""What a person types and sees. Nothing here imports torch."""
