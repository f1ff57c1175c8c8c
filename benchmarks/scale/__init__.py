"""FVU by the number of training tokens, for tuned stock coders and binary coders."""
