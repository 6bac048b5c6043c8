"""LEVI: layer-wise ensemble of different views, trained, exported and served."""
