"""Mean effects of perturbations: measured in training cells, predicted by simple models, carried by control cells."""
