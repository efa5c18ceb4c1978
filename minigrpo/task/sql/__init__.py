"""The task of writing SQL: questions, prompts, rewards, data sets and database engines."""
