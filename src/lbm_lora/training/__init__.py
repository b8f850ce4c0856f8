"""Training (layer L5b): settings <- data <- loss <- run; each imports only the packages before it."""
