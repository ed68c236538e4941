"""Forms of convolution and pooling that a backend runs well; the layers above them only see their results."""
