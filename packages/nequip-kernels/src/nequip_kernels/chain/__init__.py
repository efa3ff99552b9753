"""allegro.environment/1 and allegro.chain/1: layers of Allegro whose features are made again and not stored."""
