"""Training (layer L5b): settings <- data <- loss <- run, each of which imports only what stands before it."""
