"""Records of the families of models; `pipelines.family` finds them."""
