"""Training: settings <- data <- loss <- run; each imports only the packages before it."""
