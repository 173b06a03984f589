"""What is watched while a policy learns: logs, curvature, noise, and signs of reward hacking."""
