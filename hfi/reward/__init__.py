"""What people think of an image, as a number: CLIP embedding -> small network -> r, higher for more of the unwanted concept."""
