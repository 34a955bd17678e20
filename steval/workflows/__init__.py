"""What joins rooms: scoring a checkpoint's predictions, the demo, fine-tuning with evaluation, doctor, compare."""
