"""The distillation lab: a student trained towards a teacher's answers and, through the aligner, its KV cache."""
