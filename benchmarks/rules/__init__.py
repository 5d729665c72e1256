"""The benchmark of rules: what each learns at its own best step, in equal updates and in equal seconds."""
