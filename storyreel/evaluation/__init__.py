"""What a film is worth: looked at once, scored scene by scene, and compared with others."""
