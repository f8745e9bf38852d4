"""What a film is worth: pure measures of pictures, and the statistics of many films."""
