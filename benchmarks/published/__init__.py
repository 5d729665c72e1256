"""Published test errors on MNIST, compared with ours in the same settings."""
