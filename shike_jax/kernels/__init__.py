"""Forms of convolution, pooling and ReLU that a backend runs well; the layers above them only see their results."""
