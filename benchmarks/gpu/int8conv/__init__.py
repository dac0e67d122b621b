"""An int8 convolution in Triton that is not an engine yet: what `int8_convolution.py` beside it measures."""
