"""Published test errors on the whole of MNIST, beside ours in their setting."""
