"""The commands behind `kvviz`, one a module. What a command needs beyond its flags is imported when it runs."""
