"""Training: uses encoders, mines with a retriever; nothing below it imports it."""
