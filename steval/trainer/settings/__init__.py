"""What a run is told: phases, optimiser, objective, network; arc-state's configurations translated."""
