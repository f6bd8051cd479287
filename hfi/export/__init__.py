"""What comes out, in the formats of other programs. Pure functions on tensors and names: whoever calls them loads and writes."""
