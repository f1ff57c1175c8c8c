"""Compare the FVU and the bits per token of binary coders and stock coders."""
