"""Fine-tuning of binary and stock coders of four hooks together, beside each other."""
