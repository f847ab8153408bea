"""The HTTP service: pictures of words and words for pictures, for clients that speak OpenAI's image API.

Start with application.py (the routes) and service.py (what they share); batching.py feeds the model and knows no HTTP;
launch.py is the command. on_ray.py runs the same application on a Ray cluster.
"""
