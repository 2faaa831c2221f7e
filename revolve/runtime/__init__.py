"""Measures models and executes plans; this is where torch begins."""
