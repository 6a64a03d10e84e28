#!/usr/bin/python
import logging

from ansible.module_utils.basic import AnsibleModule

log = logging.getLogger('some.library')
log.addHandler(logging.NullHandler())  # or logging itself writes to stderr, which is shown as it is
module = AnsibleModule(argument_spec={'word': {'type': 'str'}, 'hush': {'type': 'str', 'no_log': True}})
log.warning('the word is %s, the other %s', module.params['word'], module.params['hush'])
log.info('below the level')
module.exit_json(changed=False)
