"""Small tasks, each written as a task of one's own is: vocabulary, prompts, answer."""
