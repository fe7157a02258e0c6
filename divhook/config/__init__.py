"""Configuration: files in /etc/divhook, and what a guest's domain XML says. Text in, frozen values or problems out."""
