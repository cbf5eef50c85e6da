"""The commands, a module a subject. What is heavy (torch, ray, SQL) is imported when a command runs."""
